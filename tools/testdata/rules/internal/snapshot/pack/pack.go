// Package pack breaks no rule.
package pack
