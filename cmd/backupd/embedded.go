package main

// What the image, which is made from nothing, does not have: the authorities
// that sign servers' certificates, and time zones. A system's own come first.
import (
	_ "time/tzdata"

	_ "golang.org/x/crypto/x509roots/fallback"
)
