// Command bench may use the test helper.
package main

import _ "github.com/disko/backupd/internal/testtree"

func main() {}
