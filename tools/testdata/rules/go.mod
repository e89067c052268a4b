// A small house in which every import rule of .golangci.yml is broken: each
// line that ends in "// want" must be reported, and no other.
// tools/lint-selfcheck compares.
module github.com/disko/backupd

go 1.26.0

require (
	github.com/aws/fake v0.0.0
	github.com/compose-spec/fake v0.0.0
	github.com/docker/fake v0.0.0
	github.com/moby/fake v0.0.0
	github.com/spf13/cobra v0.0.0
	github.com/spf13/pflag v0.0.0
)

replace (
	github.com/aws/fake => ./third/aws
	github.com/compose-spec/fake => ./third/compose
	github.com/docker/fake => ./third/docker
	github.com/moby/fake => ./third/moby
	github.com/spf13/cobra => ./third/cobra
	github.com/spf13/pflag => ./third/pflag
)
