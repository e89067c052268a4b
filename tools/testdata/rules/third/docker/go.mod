module github.com/docker/fake

go 1.26.0
