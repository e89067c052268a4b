module github.com/moby/fake

go 1.26.0
