package flat

import (
	"archive/tar"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// netBind is the file capability cap_net_bind_service=ep.
const netBind = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

func TestGolden(t *testing.T) {
	needRoot(t)
	long := strings.Repeat("n", 255)
	deep := strings.TrimSuffix(strings.Repeat("deep/", 60), "/")
	random := func(n int) string {
		b := make([]byte, n)
		r := rand.New(rand.NewPCG(1, uint64(n)))
		for i := range b {
			b[i] = byte(r.Uint32()) | 1
		}
		return string(b)
	}
	aclAccess := "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x07\x00\x21\x03\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff"
	big := []member{dirm("big")}
	for i := range 5000 {
		big = append(big, reg(fmt.Sprintf("big/%d-%s", i, strings.Repeat("x", i%180)), strconv.Itoa(i)))
	}
	var sixty [][]member
	for i := range 60 {
		l := []member{dirm("d"), reg(fmt.Sprintf("d/%d", i), random(i*301)), reg("d/last", strconv.Itoa(i)), hard(fmt.Sprintf("d/link%d", i), "d/last")}
		if i > 2 {
			l = append(l, reg(fmt.Sprintf("d/.wh.%d", i-2), ""))
		}
		sixty = append(sixty, l)
	}

	for name, layers := range map[string][][]member{
		"no layers":   {},
		"empty layer": {{reg("a", "1")}, {}, {reg("b", "2")}, {}},
		"one of each": {{
			dirm(".").mode(0o711).owner(1, 2), reg("empty", ""), reg("file", "contents"), reg("block", random(4096)), reg("more", random(4097)), reg("large", random(300000)),
			dirm("dir").mode(0o1777), sym("link", "file"), sym("abs", "/etc/passwd"), sym("up", "../../.."), hard("hard", "file"), hard("hardlink to symlink", "link"),
			node(tar.TypeChar, "null", 1, 3), node(tar.TypeBlock, "sda", 8, 0), node(tar.TypeBlock, "high", 0xfff, 0xfffff), node(tar.TypeFifo, "fifo", 0, 0),
			node(tar.TypeBlock, "zero", 0, 0), hard("null too", "null"),
			reg("setuid", "x").mode(0o4755), reg("setgid", "x").mode(0o2755).owner(5, 6), dirm("setgid dir").mode(0o2775), reg("none", "secret").mode(0),
			reg("owned", "x").owner(1000, 70000), reg("far", "x").owner(4294967294, 4294967294),
		}},
		"times": {{
			reg("ns", "").time(time.Unix(1600000000, 1)), reg("old", "").time(time.Unix(-1, 500000000)), reg("epoch", "").time(time.Unix(0, 0)),
			reg("future", "").time(time.Unix(6000000000, 999999999)), sym("link", "x").time(time.Unix(12345, 678)), dirm("d").time(time.Unix(99, 9)), reg("d/x", ""),
		}},
		"xattrs": {{
			reg("ping", "x").mode(0o755).xattr("security.capability", netBind).owner(7, 7),
			reg("user", "x").xattr("user.a", "1").xattr("user.b", "").xattr("user.big", random(3000)).xattr("trusted.t", "\x00\x01"),
			reg("acl", "x").mode(0o674).xattr("system.posix_acl_access", aclAccess),
			dirm("acldir").xattr("system.posix_acl_default", aclAccess).xattr("user.dir", "d"), reg("acldir/x", "not inherited").mode(0o600),
			sym("sym", "x").xattr("trusted.s", "on a symlink").xattr("security.s", "s"), node(tar.TypeChar, "dev", 1, 5).xattr("trusted.d", "on a device"),
			reg("foreign", "x").xattr("com.apple.quarantine", "left out"), sym("usersym", "x").xattr("user.x", "left out"),
			hard("ping2", "ping"),
		}, {
			dirm("acldir").xattr("user.other", "o"), reg("user", "replaced").xattr("user.a", "2"),
		}},
		"names": {{
			reg("übung/日本語", "x"), reg("latin1-\xe4\xf6\xfc", "x"), reg("new\nline", "x"), reg("tab\tback\\slash\"quote", "x"), reg(" space ", "x"),
			reg("-dash", "x"), reg("*?[", "x"), reg(long, "x"), dirm(long[1:] + "d/" + long), sym(strings.Repeat("l", 255), strings.Repeat("t", 4095)),
			reg(".hidden", "x"), reg("..x", "x"), reg("...", "x"), reg("!", "x"), reg("\x01", "x"), reg("\xff", "x"), reg(deep+"/file", "x"),
			reg("./dotted/./name", "x"), reg("/absolute", "x"), reg("//twice//slashed", "x"), sym("weird", "\xff\n"),
		}},
		"opaque directory with dot files": {{
			dirm("d"), reg("d/old", "1"), reg("d/.old", "1"), dirm("d/sub"), reg("d/sub/x", "1"),
		}, {
			dirm("d").mode(0o700), reg("d/.bashrc", "new"), dirm("d/.ssh"), reg("d/.ssh/key", "k"), reg("d/.wh..wh..opq", ""), reg("d/zz", "new"), reg("d/!", "new"),
		}},
		"opaque, implied directory": {{dirm("d").mode(0o750), reg("d/old", "1")}, {reg("d/.wh..wh..opq", ""), reg("d/new", "2")}},
		"opaque root":               {{reg("a", "1"), dirm("b"), reg("b/c", "1")}, {reg(".wh..wh..opq", ""), reg("only", "2")}},
		"opaque and nothing else":   {{dirm("d"), reg("d/old", "1")}, {dirm("d"), reg("d/.wh..wh..opq", "")}},
		"whiteout and entry of one name": {{
			dirm("d"), reg("d/x", "1"), reg("f", "1"), dirm("both"), reg("both/old", "1"),
		}, {
			reg("f", "2"), reg(".wh.f", ""), reg(".wh.d", ""), dirm("d"), reg("d/y", "2"), reg("both/new", "2"), reg(".wh.both", ""),
		}},
		"whiteouts": {{
			reg("gone", "1"), dirm("tree"), dirm("tree/a"), reg("tree/a/b", "1"), reg("stay", "1"), dirm("d"), reg("d/gone", "1"), reg("d/stay", "1"), sym("s", "stay"),
		}, {
			reg(".wh.gone", ""), reg(".wh.tree", ""), reg("d/.wh.gone", ""), reg(".wh.never", ""), reg("no/such/.wh.dir", ""), reg(".wh.s", ""),
		}},
		"whiteout of a whiteout's return": {{reg("a", "1")}, {reg(".wh.a", "")}, {reg("a", "3")}, {reg(".wh.a", "")}, {reg("a", "5")}},
		"directory to symlink to file": {
			{dirm("x"), reg("x/a", "1"), dirm("y"), reg("y/b", "1")}, {sym("x", "y")}, {reg("x", "a file")}, {dirm("x"), reg("x/c", "4")}, {sym("x", "nowhere")}, {dirm("x").mode(0o700)}},
		"types change": {
			{reg("a", "1"), sym("b", "a"), node(tar.TypeFifo, "c", 0, 0), dirm("d"), node(tar.TypeChar, "e", 1, 3)},
			{sym("a", "b"), node(tar.TypeFifo, "b", 0, 0), dirm("c"), node(tar.TypeChar, "d", 1, 3), reg("e", "2")},
			{dirm("a"), reg("b", "3"), reg("c/x", "3"), reg("d", "3"), dirm("e")}},
		"through a symlink of a lower layer": {
			{dirm("usr"), dirm("usr/lib").mode(0o711), reg("usr/lib/a", "1"), sym("lib", "usr/lib"), sym("lib64", "lib")},
			{reg("lib/b", "2"), reg("lib64/sub/c", "2")}, {reg("lib/.wh.a", ""), reg("lib64/.wh.b", ""), hard("lib/d", "lib64/sub/c")}},
		"through a symlink of its own layer": {{dirm("usr"), dirm("usr/lib"), sym("lib", "usr/lib"), reg("lib/b", "2"), reg("lib/sub/c", "3"), hard("h", "lib/b")}},
		"hard links": {
			{dirm("d"), reg("d/a", "1"), hard("b", "d/a"), hard("c", "./b"), reg("other", "1")},
			{hard("d/across", "b"), hard("more", "d/across"), hard("/lead", "/other")},
			{reg("b", "replaced"), reg("d/.wh.a", "")},
			{reg("c", "new"), hard("c2", "c"), hard("m2", "more")}},
		"hard link to what its layer replaces": {{reg("a", "1"), reg("z", "1")}, {hard("b", "a"), reg("a", "2"), hard("c", "a")}},
		"implied parents":                      {{reg("a/b/c", "1")}, {dirm("a").mode(0o700), reg("a/b/d", "2"), reg("a/e/f", "2")}, {dirm("a/b").mode(0o711)}},
		"replaced in one layer":                {{reg("a", "1"), reg("a", "22"), dirm("d").mode(0o700), reg("d/x", "1"), dirm("d").mode(0o755), sym("s", "a"), reg("s", "x")}},
		"zeros":                                {{reg("z1", strings.Repeat("\x00", 100)), reg("z2", strings.Repeat("\x00", 1<<20)), reg("mixed", strings.Repeat("\x00", 1<<18)+random(70000)+strings.Repeat("\x00", 1<<18)+"end")}},
		"a large directory":                    {big, {reg("big/.wh.17-"+strings.Repeat("x", 17), ""), reg("big/one more", "2")}},
		"60 layers":                            sixty,
		"one layer twice":                      {{reg("a", "1")}, {reg("a", "2")}, {reg("a", "1")}},
	} {
		t.Run(name, func(t *testing.T) { checkStack(t, stack(t, layers...)) })
	}
}

// TestGoldenGNU takes layers that GNU tar makes of real directories.
func TestGoldenGNU(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	w := func(name, body string) string {
		p := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Dir(p), 0o755))
		must(t, os.WriteFile(p, []byte(body), 0o644))
		return p
	}
	must(t, syscall.Setxattr(w("bin/ping", "#!"), "security.capability", []byte(netBind), 0))
	must(t, syscall.Setxattr(w("attr", "#!"), "user.with=sign%", []byte("v\x00w"), 0))
	must(t, os.Link(w("one", "x"), filepath.Join(dir, "two")))
	must(t, os.Link(filepath.Join(dir, "one"), filepath.Join(dir, "bin/three")))
	w(strings.Repeat("d", 200)+"/"+strings.Repeat("e", 200)+"/"+strings.Repeat("f", 255), "long")
	w("latin-\xe4", "x")
	w("uni-ä", "x")
	must(t, os.Symlink(strings.Repeat("s/", 2000), filepath.Join(dir, "longlink")))
	must(t, syscall.Mknod(filepath.Join(dir, "tty"), syscall.S_IFCHR|0o620, 5<<8))
	must(t, syscall.Mknod(filepath.Join(dir, "pipe"), syscall.S_IFIFO|0o600, 0))
	must(t, os.Chmod(w("suid", "x"), 0o755|os.ModeSetuid))
	must(t, os.Chtimes(filepath.Join(dir, "one"), time.Now(), time.Unix(1234567890, 987654321)))
	must(t, os.Chown(w("alien", "x"), 123456, 654321))
	sparse, err := os.Create(filepath.Join(dir, "sparse"))
	must(t, err)
	for _, at := range []int64{0, 5 << 20, 5<<20 + 70000, 31<<20 + 5} {
		_, err = sparse.WriteAt([]byte("data at "+strconv.FormatInt(at, 10)), at)
		must(t, err)
	}
	must(t, sparse.Truncate(40<<20))
	must(t, sparse.Close())
	hole, err := os.Create(filepath.Join(dir, "hole"))
	must(t, err)
	must(t, hole.Truncate(3<<20+1))
	must(t, hole.Close())

	for name, args := range map[string][]string{
		"pax":        {"--format=pax", "--xattrs", "--xattrs-include=*"},
		"pax sparse": {"--format=pax", "--xattrs", "--xattrs-include=*", "-S"},
		"sparse 0.0": {"--format=pax", "-S", "--sparse-version=0.0"},
		"sparse 0.1": {"--format=pax", "-S", "--sparse-version=0.1"},
		"sparse 1.0": {"--format=pax", "-S", "--sparse-version=1.0"},
		"gnu":        {"--format=gnu"},
		"gnu sparse": {"--format=gnu", "-S"},
		"oldgnu":     {"--format=oldgnu", "-S"},
		"ustar":      {"--format=ustar", "--exclude=longlink", "--exclude=ddd*"},
		"v7":         {"--format=v7", "--exclude=longlink", "--exclude=ddd*", "--exclude=pipe", "--exclude=tty"},
	} {
		t.Run(name, func(t *testing.T) {
			layer := gnuTar(t, dir, args...)
			checkStack(t, []string{layer})
			if strings.Contains(name, "sparse") {
				st, err := os.Stat(layer)
				must(t, err)
				l, err := Write(t.Context(), open(t, layer), t.TempDir(), Limits{})
				must(t, err)
				if l.Blocks*BlockSize > 1<<20 || l.Size < 43<<20 {
					t.Errorf("the sparse files (tar: %d bytes) take %d blocks, sizes %d", st.Size(), l.Blocks, l.Size)
				}
			}
		})
	}
}

func open(t testing.TB, p string) *os.File {
	t.Helper()
	f, err := os.Open(p)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// TestRandomStacks compares random layers with the oracle. FLAT_SEED repeats
// one run, FLAT_STACKS makes more than 30.
func TestRandomStacks(t *testing.T) {
	needRoot(t)
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("FLAT_SEED"); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		must(t, err)
	}
	n := uint64(30)
	if s := os.Getenv("FLAT_STACKS"); s != "" {
		var err error
		n, err = strconv.ParseUint(s, 10, 64)
		must(t, err)
	}
	for i := range n {
		seed := seed + i
		ok := t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { randomStack(t, rand.New(rand.NewPCG(seed, 0))) })
		if !ok {
			t.Fatalf("repeat with FLAT_SEED=%d", seed)
		}
	}
}

func randomStack(t *testing.T, r *rand.Rand) {
	state := oracle(t, nil)
	var layers []string
	for range 2 + r.IntN(7) {
		l := stack(t, randomLayer(r, state))[0]
		oracleApply(t, state, l)
		layers = append(layers, l)
	}
	checkStack(t, layers)
}

// randomLayer makes a layer that fits on top of the directory state.
func randomLayer(r *rand.Rand, state string) (out []member) {
	names := []string{"a", "b", ".c", "dd", "\xe4", "x y", "..e"}
	made := map[string]byte{} // what the layer has said about a path
	var files []string
	// parents names the directories above p, unless the layers below have them.
	var parents func(p string) bool
	parents = func(p string) bool {
		d := path.Dir(p)
		if d == "." {
			return true
		}
		if !parents(d) {
			return false
		}
		if kind, ok := made[d]; ok {
			return kind == tar.TypeDir
		}
		st, err := os.Lstat(filepath.Join(state, d))
		if (err == nil && !st.IsDir()) || r.IntN(2) == 0 {
			out = append(out, dirm(d).mode(0o700+int64(r.IntN(64))).time(time.Unix(r.Int64N(1<<31), r.Int64N(1e9))))
		}
		made[d] = tar.TypeDir
		return true
	}
	for range r.IntN(25) {
		p := names[r.IntN(len(names))]
		for r.IntN(2) == 0 {
			p += "/" + names[r.IntN(len(names))]
		}
		if _, ok := made[p]; ok || !parents(p) {
			continue
		}
		d, base := path.Split(p)
		var m member
		switch r.IntN(12) {
		case 0, 1, 2:
			body := make([]byte, r.IntN(3)*r.IntN(70000))
			if r.IntN(3) > 0 {
				for i := range body {
					body[i] = byte(r.Uint32())
				}
			}
			m = reg(p, string(body)).mode(r.Int64N(0o10000)).owner(r.IntN(100000), r.IntN(100000))
			if r.IntN(3) == 0 {
				m = m.xattr("user.r", strconv.Itoa(r.Int())).xattr("trusted.r", "t")
			}
			files = append(files, p)
		case 3, 4:
			m = dirm(p).mode(0o700 + r.Int64N(64))
			if r.IntN(3) == 0 {
				m = m.xattr("user.d", strconv.Itoa(r.Int()))
			}
		case 5:
			m = sym(p, names[r.IntN(len(names))])
		case 6:
			m = node(tar.TypeFifo, p, 0, 0)
		case 7:
			m = node(tar.TypeChar, p, 1, r.Int64N(1000))
		case 8:
			if len(files) == 0 {
				continue
			}
			m = hard(p, files[r.IntN(len(files))])
		case 9, 10:
			out = append(out, reg(d+".wh."+base, "")) // and maybe the name itself later
			continue
		case 11:
			if made[d+".wh..wh..opq"] == 0 {
				out = append(out, reg(d+".wh..wh..opq", ""))
				made[d+".wh..wh..opq"] = 1
			}
			continue
		}
		made[p] = m.Typeflag
		out = append(out, m.time(time.Unix(r.Int64N(1<<32), r.Int64N(1e9))))
	}
	return out
}
