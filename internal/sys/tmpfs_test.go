package sys

import (
	"maps"
	"testing"
)

// D33: the options that mount(8) has for every file system, and tmpfs's own.
func TestFaultD33TmpfsOptions(t *testing.T) {
	strict := MountNosuid | MountNodev | MountNoexec
	for options, want := range map[string]struct {
		attr   int
		params map[string]string
	}{
		"":                            {strict, nil},
		"exec,dev":                    {MountNosuid, nil},
		"ro,rw,noexec,exec":           {MountNosuid | MountNodev, nil},
		"noatime,strictatime":         {strict | MountStrictatime, nil},
		"strictatime,noatime":         {strict | MountNoatime, nil},
		"noatime,relatime,nodiratime": {strict | MountNodiratime, nil},
		"sync,dirsync,size=10%":       {strict, map[string]string{"sync": "", "dirsync": "", "size": "10%"}},
		"sync,async,mpol=bind:0":      {strict, map[string]string{"mpol": "bind:0"}},
	} {
		if attr, params := TmpfsOptions(options); attr != want.attr || !maps.Equal(params, want.params) {
			t.Errorf("%q: %#x %v, want %#x %v", options, attr, params, want.attr, want.params)
		}
	}
}
