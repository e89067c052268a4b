// Package config stands for ours.
package config
