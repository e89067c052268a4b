package seed

import (
	"strings"
	"testing"
)

const id64 = "b2f6ef28e6374c4064067ee0b9eec9f3b45a76a8702a8eac86aaab6053160a87"

// Lines as they were seen, by engine.
var mountLines = map[string]string{
	"docker 20.10, ext4": `88 69 254:0 /var/lib/docker/containers/` + id64 + `/hostname /etc/hostname rw,relatime - ext4 /dev/vda rw,discard`,
	"docker, own disk":   `612 590 8:17 /containers/` + id64 + `/hostname /etc/hostname rw,relatime master:3 - xfs /dev/sdb1 rw,attr2`,
	"docker, btrfs":      `612 590 0:33 /@docker/containers/` + id64 + `/hostname /etc/hostname rw,relatime - btrfs /dev/sda2 rw,subvol=/@docker`,
	"rootless":           `1240 1210 254:0 /home/me/.local/share/docker/containers/` + id64 + `/hostname /etc/hostname rw,nosuid,nodev - ext4 /dev/vda rw`,
	"podman":             `700 690 0:25 /containers/overlay-containers/` + id64 + `/userdata/hostname /etc/hostname rw,nosuid - tmpfs tmpfs rw,size=1k`,
	"hostname of the user's": "88 69 254:0 /srv/hostname /etc/hostname rw - ext4 /dev/vda rw\n" +
		`89 69 254:0 /var/lib/docker/containers/` + id64 + `/hosts /etc/hosts rw - ext4 /dev/vda rw`,
	"another's namespace": `88 69 254:0 /var/lib/docker/containers/` + id64 + `/hostname /etc/hostname rw shared:5 master:1 propagate_from:2 - ext4 /dev/vda rw`,
}

func TestOwnContainerIsFoundByItsHostnameFile(t *testing.T) {
	for name, line := range mountLines {
		list, err := parseMounts(strings.NewReader(line + "\n"))
		if err != nil {
			t.Fatal(err)
		}
		if id, ok := containerID(list); !ok || id != id64 {
			t.Errorf("%s: %q, %v", name, id, ok)
		}
	}
	for _, line := range []string{
		`88 69 254:0 /etc/hostname /etc/hostname rw - ext4 /dev/vda rw`, // mounted by the user
		`88 69 254:0 /var/lib/docker/containers/short/hostname /etc/hostname rw - ext4 /dev/vda rw`,
		`88 69 254:0 /var/lib/docker/containers/` + id64 + `/config.v2.json /etc/hosts rw - ext4 /dev/vda rw`,
		``,
	} {
		list, err := parseMounts(strings.NewReader(line))
		if err != nil {
			t.Fatal(err)
		}
		if id, ok := containerID(list); ok {
			t.Errorf("%s: is %s", line, id)
		}
	}
}

func TestPlainVolumesAreToldByTheirRoot(t *testing.T) {
	for root, want := range map[string]bool{
		"/var/lib/docker/volumes/shop_db/_data":              true,
		"/volumes/shop_db/_data":                             true,
		"/home/me/.local/share/docker/volumes/shop_db/_data": true,
		"/var/lib/docker/volumes/shop_db/_data/sub":          false, // volume-subpath
		"/srv/data":             false, // driver_opts o=bind
		"/":                     false, // NFS, tmpfs
		"/srv/volumes/_data":    false,
		"/home/me/project/data": false,
	} {
		if plainVolume.MatchString(root) != want {
			t.Errorf("%s: %v", root, !want)
		}
	}
}

func TestMountsAreRead(t *testing.T) {
	list, err := parseMounts(strings.NewReader(`36 35 98:0 /mnt1\040a /mnt\0402\134x ro,noatime master:1 - ext3 /dev/root rw,errors=continue
37 35 98:0 / /mnt rw - nfs4 server:/export ro,vers=4.2
38 35 98:0 /over /mnt rw - tmpfs tmpfs
`))
	if err != nil {
		t.Fatal(err)
	}
	if m, ok := at(list, `/mnt 2\x`); !ok || m.root != "/mnt1 a" || !m.readOnly || m.fsType != "ext3" {
		t.Errorf("%+v, %v", m, ok)
	}
	if !list[1].readOnly || list[2].readOnly {
		t.Error("options are not read")
	}
	if m, _ := at(list, "/mnt"); m.root != "/over" {
		t.Errorf("what covers is %+v", m)
	}
	for _, bad := range []string{"36 35 98:0 / /mnt rw ext3", "36 35 - ext3 /dev/root", "x"} {
		if _, err := parseMounts(strings.NewReader(bad)); err == nil {
			t.Errorf("%q was understood", bad)
		}
	}
}

// What is understood is what the kernel would write of it.
func FuzzMountinfo(f *testing.F) {
	for _, line := range mountLines {
		f.Add(line)
	}
	f.Add(`36 35 98:0 /mnt1\040a /mnt\0402\134x ro,noatime master:1 - ext3 /dev/root rw,errors=continue`)
	f.Add(`\400 \77 \ - `)
	escape := strings.NewReplacer(`\`, `\134`, " ", `\040`, "\t", `\011`, "\n", `\012`)
	f.Fuzz(func(t *testing.T, line string) {
		m, err := parseMount(line)
		if err != nil {
			return
		}
		again, err := parseMount("1 2 3:4 " + escape.Replace(m.root) + " " + escape.Replace(m.point) + " rw - " + escape.Replace(m.fsType) + " x rw")
		if err != nil {
			t.Fatal(err)
		}
		if again.root != m.root || again.point != m.point {
			t.Errorf("%q became %+v, then %+v", line, m, again)
		}
		containerID([]mount{m})
	})
}
