package engine

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"proa/internal/isolation"
)

// B5: the map reaches to 2^31 and has the negative ids of old archives; two
// engines share no id; an older, narrower record stays where it is; where others
// have nearly everything, the rest is taken in pieces.
func TestFaultB5ClaimIDs(t *testing.T) {
	files := func(text string) []string {
		dir := t.TempDir()
		u, g := filepath.Join(dir, "subuid"), filepath.Join(dir, "subgid")
		for _, f := range []string{u, g} {
			if err := os.WriteFile(f, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return []string{u, g}
	}
	claim := func(files []string, owner string, width uint32) isolation.IDMap {
		t.Helper()
		m, err := ClaimIDs(files, owner, width)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ClaimIDs(files, owner, width)
		if err != nil || !reflect.DeepEqual(m, again) {
			t.Errorf("claimed again: %v, %v, before %v", again, err, m)
		}
		u, _ := os.ReadFile(files[0])
		g, _ := os.ReadFile(files[1])
		if string(u) != string(g) {
			t.Errorf("the files differ:\n%s\n%s", u, g)
		}
		return m
	}
	two := files("ann:100000:65536\n")
	first, second := claim(two, "proa", mostIDs), claim(two, "proa-2", mostIDs)
	if !first.Has(0, 65535, 65536, 70000, 1000680000, 1999999999, 2147483647, 4294967294, 4294934528) || first.Has(4294967295) || first.Has(2147483648) {
		t.Errorf("the first engine's ids are %v", first)
	}
	if !second.Has(0, 65535, 65536, 100_000_000, 4294967294) {
		t.Errorf("the second engine's ids are %v", second)
	}
	for _, a := range first {
		if meets(a, second) || a.Host < firstID {
			t.Errorf("%v is not the first engine's alone: %v", a, second)
		}
	}
	// The first one gives up what the second one needs.
	first = claim(two, "proa", 1<<30)
	if second = claim(two, "proa-2", 1<<30); !first.Has(1000680000) || !second.Has(1000680000) {
		t.Errorf("side by side: %v and %v", first, second)
	}

	old := files("proa:1879048192:65536\n")
	if m := claim(old, "proa", mostIDs); m[0] != (isolation.IDRange{Host: 1879048192, Size: 65536}) || !m.Has(2147483647) {
		t.Errorf("with an older record: %v", m)
	}
	if m := claim(old, "proa", lowIDs); len(m) != 1 || m.String() != "0-65535" {
		t.Errorf("made narrower: %v", m)
	}

	var full strings.Builder
	fmt.Fprintf(&full, "low:%d:%d\n", firstID, wideID-firstID)
	fmt.Fprintf(&full, "wide:%d:%d\n", wideID, lastID-wideID-65536-1000)
	fmt.Fprintf(&full, "high:%d:%d\nroot:0:65536\n", uint32(highID)+5000, uint32(endID-highID-5000))
	few := files(full.String())
	m := claim(few, "proa", mostIDs)
	if want := (isolation.IDMap{{Inside: 0, Host: lastID - 66536, Size: 65536}, {Inside: 65536, Host: highID, Size: 5000}, {Inside: 70536, Host: lastID - 1000, Size: 1000}}); !reflect.DeepEqual(m, want) {
		t.Errorf("of nearly full files: %v, want %v", m, want)
	}
	if _, err := ClaimIDs(few, "other", mostIDs); err == nil || !strings.Contains(err.Error(), few[0]) {
		t.Errorf("of full files: %v", err)
	}
	// A line that would give a container the host's own users is not followed.
	if m := claim(files("proa:0:65536\nproa-wide:1000:100000\n"), "proa", mostIDs); m.Root() < firstID || m[1].Host < firstID {
		t.Errorf("of a wrong line: %v", m)
	}
	if err := ReleaseRange(two, "proa"); err != nil {
		t.Fatal(err)
	}
	if text, _ := os.ReadFile(two[0]); strings.Contains(string(text), "proa:") || strings.Contains(string(text), "proa-wide:") || !strings.Contains(string(text), "proa-2:") {
		t.Errorf("after the release:\n%s", text)
	}
}

func TestFaultB5IDMap(t *testing.T) {
	m := isolation.IDMap{{Inside: 0, Host: 1000, Size: 10}, {Inside: 10, Host: 5000, Size: 5}, {Inside: 100, Host: 4294967290, Size: 5}}
	for id, host := range map[uint32]uint32{0: 1000, 9: 1009, 10: 5000, 14: 5004, 100: 4294967290, 104: 4294967294} {
		if out, ok := m.Outside(id); !ok || out != host {
			t.Errorf("%d is %d, %v outside", id, out, ok)
		}
		if in, ok := m.Inside(host); !ok || in != id {
			t.Errorf("%d is %d, %v inside", host, in, ok)
		}
	}
	if m.Has(15) || m.Has(99) || m.Has(105) || m.String() != "0-14 and 100-104" {
		t.Errorf("%v", m)
	}
	text := "         0       1000         10\n        10       5000          5\n       100 4294967290          5\n"
	if p, err := isolation.ParseIDMap(text); err != nil || !reflect.DeepEqual(p, m) {
		t.Errorf("%v, %v", p, err)
	}
	if n := lastGroup(m); n != 104 {
		t.Errorf("a range of groups can reach to %d", n)
	}
}
