package rclone

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestNoChildOutlivesAKilledProcess(t *testing.T) {
	debian(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestTheChildDiesWithThisProcess$")
	cmd.Env = append(os.Environ(), "BACKUPD_TEST_RCLONE_CHILD=1")
	var out bytes.Buffer
	cmd.Stdout = &out
	cmd.Run() // it is killed
	_, rest, ok := strings.Cut(out.String(), "child ")
	pid, _, _ := strings.Cut(rest, "\n")
	if !ok || pid == "0" {
		t.Fatalf("%s", out.String())
	}
	waitFor(t, "the end of rclone", func() bool {
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		return os.IsNotExist(err) || bytes.Contains(stat, []byte(") Z "))
	})
}
