//go:build !linux

package main

import "errors"

func memoryFile([]byte) (string, error) { return "", errors.New("workers run on Linux only") }
