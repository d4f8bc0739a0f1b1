package bench

import (
	"encoding/json"
	"fmt"
	"testing"

	"proa/internal/compare"
	"proa/test/proatest"
)

// Two comparisons of the same command, one after the other: on an idle machine
// their medians agree within a tenth.
func BenchmarkCompare(b *testing.B) {
	e := proatest.New(b)
	e.ImportBusybox("bb")
	const script = "echo begin; head -c 20000000 /dev/urandom > /file; sync; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"
	var both [2]compare.Report
	for i := range both {
		out := e.MustProa("compare", "--runs", "7", "--format", "json", "bb", "--", "sh", "-c", script)
		if err := json.Unmarshal([]byte(out), &both[i]); err != nil {
			b.Fatal(err)
		}
	}
	fmt.Printf("\ntwo comparisons (7 runs each)\n%-12s %-20s %14s %14s %9s\n", "", "", "first", "second", "differ")
	for i, c := range both[0].Contenders {
		for _, name := range []string{"firstOutputSeconds", "wallSeconds", "cpuSeconds", "memoryPeakBytes", "diskBytes", "writtenBytes", "processes"} {
			x, y := c.Summary[name].Median, both[1].Contenders[i].Summary[name].Median
			differ := 0.0
			if x > 0 {
				differ = 100 * (y - x) / x
			}
			fmt.Printf("%-12s %-20s %14.4g %14.4g %+8.1f%%\n", c.Name, name, x, y, differ)
		}
	}
	fmt.Println(both[1].Sentence)
}
