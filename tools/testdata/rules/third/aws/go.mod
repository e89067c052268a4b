module github.com/aws/fake

go 1.26.0
