package dir

import _ "github.com/disko/backupd/internal/snapshot"
