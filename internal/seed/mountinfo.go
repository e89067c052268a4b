package seed

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
)

// mount is a line of /proc/self/mountinfo, as far as it is asked for.
type mount struct {
	root     string // what of the file system is mounted
	point    string // where
	readOnly bool   // the mount or its file system
	fsType   string
}

// parseMounts reads /proc/self/mountinfo, proc_pid_mountinfo(5). Octal escapes are resolved.
func parseMounts(r io.Reader) ([]mount, error) {
	var list []mount
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20) // overlay's options name every layer
	for s.Scan() {
		m, err := parseMount(s.Text())
		if err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	return list, s.Err()
}

// parseMount reads one line:
// 36 35 98:0 /root /point rw,noatime master:1 - ext3 /dev/root rw,errors=continue
func parseMount(line string) (mount, error) {
	front, back, ok := strings.Cut(line, " - ")
	f, b := strings.Split(front, " "), strings.Split(back, " ")
	if !ok || len(f) < 6 || len(b) < 2 {
		return mount{}, fmt.Errorf("read mountinfo: cannot understand %q", line)
	}
	m := mount{root: unescapeMount(f[3]), point: unescapeMount(f[4]), fsType: b[0], readOnly: hasOption(f[5], "ro")}
	if len(b) > 2 {
		m.readOnly = m.readOnly || hasOption(b[2], "ro")
	}
	return m, nil
}

func hasOption(list, want string) bool {
	for o := range strings.SplitSeq(list, ",") {
		if o == want {
			return true
		}
	}
	return false
}

// unescapeMount resolves the kernel's \ooo, which stands for space, tab, newline and backslash.
func unescapeMount(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && s[i+1] >= '0' && s[i+1] <= '3' && isOctal(s[i+2]) && isOctal(s[i+3]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func isOctal(c byte) bool { return c >= '0' && c <= '7' }

// at returns what is mounted at a path; of several mounts there, the last covers the others.
func at(list []mount, path string) (mount, bool) {
	for i := len(list) - 1; i >= 0; i-- {
		if list[i].point == path {
			return list[i], true
		}
	}
	return mount{}, false
}

func ownMounts() ([]mount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseMounts(f)
}

// plainVolume is what the engine mounts of a volume of the local driver without
// options. With options (a bound directory, NFS, tmpfs) it mounts that instead, and with a
// subpath a part: then the root has another name.
var plainVolume = regexp.MustCompile(`/volumes/[^/]+/_data$`)

// containerFile is a file that an engine keeps for one container and mounts
// into it: docker's containers/ID/hostname; podman's overlay-containers/ID/userdata/hostname.
var containerFile = regexp.MustCompile(`/(?:containers|overlay-containers)/([0-9a-f]{64})/(?:userdata/)?(?:hostname|hosts|resolv\.conf)$`)

// hostname is where a container has its host name. The engine makes the file when the
// container is started first, and only fills it again when it is started later.
const hostname = "/etc/hostname"

// containerOf returns the container that a file in /etc is kept for.
func containerOf(list []mount, path string) (string, bool) {
	if m, ok := at(list, path); ok {
		if hit := containerFile.FindStringSubmatch(m.root); hit != nil {
			return hit[1], true
		}
	}
	return "", false
}

func containerID(list []mount) (string, bool) {
	for _, path := range []string{hostname, "/etc/hosts", "/etc/resolv.conf"} { // users mount their own over some
		if id, ok := containerOf(list, path); ok {
			return id, true
		}
	}
	return "", false
}

// OwnContainerID returns the id of the container that this process runs in: the
// one whose hostname file is mounted at /etc/hostname. That is so with the
// rootless engine and with cgroup v1 and v2 alike, because they are not asked; nor is the host
// name, which users override. A container that has another's network (network:
// container:X) has the other's file, so callers that have an engine
// compare that container's mounts with their own. False where there is none.
func OwnContainerID() (string, bool) {
	list, err := ownMounts()
	if err != nil {
		return "", false
	}
	return containerID(list)
}
