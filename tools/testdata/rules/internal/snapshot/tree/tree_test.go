package tree

import (
	"testing"
	"time"

	_ "github.com/disko/backupd/internal/targets"
	_ "github.com/disko/backupd/internal/testtree"
)

func TestNothing(t *testing.T) { t.Log(time.Now(), t.Context()) }
