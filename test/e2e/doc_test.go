// Package e2e runs backupd's image and the examples of configs/ as users do:
// with a real engine and Docker Compose, in stacks made of Debian's packages.
// `make e2e` runs it; `make test` leaves it out, because it takes minutes.
package e2e
