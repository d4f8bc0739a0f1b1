package flat

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// probes keeps the answers of this process, by directory.
var probes struct {
	sync.Mutex
	byDir map[string]*probed
}

// probed is what was found out about one directory.
type probed struct {
	Ability
	direct bool // file-backed mounts can read by direct I/O
}

func (p *probed) verdict(strategy string) *Verdict {
	switch strategy {
	case StrategyFile:
		return &p.File
	case StrategyLoop:
		return &p.Loop
	case StrategyExtract:
		return &p.Extract
	}
	return nil
}

// Probe says which strategies work for files below dir, by mounting a tiny
// image there in each way and reading it; nothing is attached to any path. The
// answer is kept for the life of the process.
func Probe(dir string) Ability { return probe(dir).Ability }

func probe(dir string) *probed {
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	probes.Lock()
	defer probes.Unlock()
	if p := probes.byDir[dir]; p != nil {
		return p
	}
	p := &probed{Ability: Ability{Checked: time.Now()}}
	image, tmp, err := probeImage(dir)
	if err != nil {
		why := fmt.Sprintf("cannot write a small image to try: %v", err)
		p.File.Why, p.Loop.Why, p.Extract.Why = why, why, why
		return p // not kept: a full disk is no property of the host
	}
	defer os.RemoveAll(tmp)

	err = probeMount(func() (*os.File, error) { return mountFiles(image, true) })
	if p.direct = err == nil; p.direct {
		p.File = Verdict{OK: true}
	} else if errPlain := probeMount(func() (*os.File, error) { return mountFiles(image, false) }); errPlain == nil {
		p.File = Verdict{OK: true, Why: fmt.Sprintf("without direct I/O, so that what is read is cached twice: %v", err)}
	} else {
		p.File = Verdict{Why: fmt.Sprintf("needs Linux 6.12 with EROFS_FS_BACKED_BY_FILE, and a data root on a file system such as ext4, xfs or btrfs: %v", errPlain)}
	}
	p.Loop = judge(probeMount(func() (*os.File, error) { return mountLoops(image) }), "needs Linux 5.16 with EROFS_FS and loop devices: %v")
	p.Extract = judge(probeMount(func() (*os.File, error) {
		if err := extract(image); err != nil {
			return nil, err
		}
		return bindReadonly(image.Dir)
	}), "needs root and a file system that stores owners, devices and extended attributes: %v")
	if probes.byDir == nil {
		probes.byDir = map[string]*probed{}
	}
	probes.byDir[dir] = p
	return p
}

func judge(err error, no string) Verdict {
	if err != nil {
		return Verdict{Why: fmt.Sprintf(no, err)}
	}
	return Verdict{OK: true}
}

// probeText is longer than a block, so that a mount must find the second one.
var probeText = bytes.Repeat([]byte("proa looks whether this can be read\n"), 200)

// probeImage writes an image of two layers into a new directory below dir.
func probeImage(dir string) (image Files, tmp string, err error) {
	if tmp, err = os.MkdirTemp(dir, TempPrefix); err != nil {
		return Files{}, "", err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(tmp)
		}
	}()
	var layers []*Layer
	for i, h := range []*tar.Header{
		{Typeflag: tar.TypeReg, Name: "text", Mode: 0o644, Size: int64(len(probeText))},
		{Typeflag: tar.TypeReg, Name: "owned", Mode: 0o4755, Uid: 100000, Gid: 100000, PAXRecords: map[string]string{
			"SCHILY.xattr.trusted.proa": "1",
			// cap_net_bind_service, permitted and effective
			"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		}},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err = w.WriteHeader(h); err != nil {
			return
		}
		if i == 0 {
			if _, err = w.Write(probeText); err != nil {
				return
			}
		}
		if err = w.Close(); err != nil {
			return
		}
		var l *Layer
		if l, err = Write(context.Background(), &b, tmp, Limits{}); err != nil {
			return
		}
		layers = append(layers, l)
		image.Data = append(image.Data, l.Data())
	}
	image.Index = filepath.Join(tmp, "index")
	image.Dir = filepath.Join(tmp, "dir")
	err = Merge(layers, image.Index)
	return
}

// probeMount makes a mount and reads the file in it.
func probeMount(mount func() (*os.File, error)) error {
	m, err := mount()
	if err != nil {
		return err
	}
	defer m.Close()
	b, err := os.ReadFile(viaFD(m) + "/text")
	if err != nil {
		return err
	}
	if !bytes.Equal(b, probeText) {
		return fmt.Errorf("the mount shows other bytes than were written")
	}
	_, err = os.Lstat(viaFD(m) + "/owned")
	return err
}
