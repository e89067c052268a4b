module github.com/disko/backupd

go 1.26.0
