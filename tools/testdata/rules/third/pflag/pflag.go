// Package pflag stands for a dependency.
package pflag
