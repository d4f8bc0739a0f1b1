package engine

import (
	"strings"
	"testing"
)

// Row C28: what Docker 20.10.24 (parsers.ParseUintListMaximum) takes and says.
func TestFaultC28Cpusets(t *testing.T) {
	for list, want := range map[string]int{"": 0, "0": 1, "0-3": 4, "0-3,7": 5, "01": 1, "0,0": 1, "8192": 1} {
		got, err := parseCpuset(list)
		if err != nil || len(got) != want {
			t.Errorf("%q: %v %v", list, got, err)
		}
	}
	for list, says := range map[string]string{
		"a": "invalid format: a", "1-0": "invalid format", "0,": "invalid format", ",": "invalid format", " 0": "invalid format", "-1": "invalid format",
		"0-": "invalid format", "0-1:2/4": "invalid format", "8193": "maximum is 8192", "1-9223372036854775807": "maximum is 8192",
		"99999999999999999999999": "maximum is 8192",
	} {
		if got, err := parseCpuset(list); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v %v, want %q", list, got, err, says)
		}
	}
}
