module github.com/compose-spec/fake

go 1.26.0
