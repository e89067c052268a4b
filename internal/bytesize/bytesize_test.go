package bytesize

import "testing"

func TestSizesAreWrittenAsPeopleReadThem(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1 << 20: "1.0 MiB",
		5 << 30: "5.0 GiB", 3 << 40: "3.0 TiB", 2048 << 50: "2048.0 PiB", -5: "-5 B",
	} {
		if got := Text(n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}

func TestSizesAreReadAsPeopleWriteThem(t *testing.T) {
	for text, want := range map[string]int64{"1": 1, "512m": 512 << 20, "2GiB": 2 << 30, "64 kb": 64 << 10, "1t": 1 << 40} {
		if got, err := Parse(text); err != nil || got != want {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "0", "-1m", "m", "1p", "99999999t", "1.5g", "1mm"} {
		if got, err := Parse(text); err == nil {
			t.Errorf("%s: %d", text, got)
		}
	}
}
