package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
)

const (
	leaseFile  = "endpoint.json"
	bridgeFile = "bridge.json"
)

// bridgeRecord is Dir/bridge.json: what the bridge is, and what was changed on
// the host for it. A change is recorded before it is made.
type bridgeRecord struct {
	Subnet  netip.Prefix `json:"subnet"`
	Subnet6 netip.Prefix `json:"subnet6"`
	Made    bool         `json:"made"` // link and table may exist and are ours
	Changed []sysctl     `json:"changed,omitempty"`
}

// sysctl is a setting that was Old and is New while the bridge is up.
type sysctl struct {
	Name string `json:"name"` // path below /proc/sys
	Old  string `json:"old"`
	New  string `json:"new"`
}

// writeJSON replaces a file as a whole. It is not synced: after a power cut
// nothing that it speaks of exists any more.
func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("cannot encode %q: %w", path, err)
	}
	return writeWhole(path, append(b, '\n'), 0o600)
}

func writeWhole(path string, b []byte, mode fs.FileMode) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, b, mode); err != nil {
		return fmt.Errorf("cannot write %q: %w", tmp, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("cannot write %q: %w", path, err)
	}
	return nil
}

// readLeases reads every endpoint below dir. A directory without a whole lease
// was left by a Reserve that did not end: it is removed.
func readLeases(dir string) (map[string]*Endpoint, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot read the leases: %w", err)
	}
	out := map[string]*Endpoint{}
	for _, e := range entries {
		if !e.IsDir() || checkID(e.Name()) != nil {
			continue
		}
		var ep Endpoint
		b, err := os.ReadFile(filepath.Join(dir, e.Name(), leaseFile))
		if err == nil {
			err = json.Unmarshal(b, &ep)
		}
		if err != nil || ep.ID != e.Name() {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return nil, fmt.Errorf("cannot remove an unfinished lease: %w", err)
			}
			continue
		}
		out[ep.ID] = &ep
	}
	return out, nil
}

func readBridge(dir string) (bridgeRecord, error) {
	var r bridgeRecord
	b, err := os.ReadFile(filepath.Join(dir, bridgeFile))
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return r, fmt.Errorf("cannot read the record of the bridge: %w", err)
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("cannot read %q: %w; if no container runs, remove the file", filepath.Join(dir, bridgeFile), err)
	}
	return r, nil
}

// checkID refuses what cannot be the name of a directory of ours.
func checkID(id string) error {
	if id == "" || len(id) > 128 {
		return fmt.Errorf("cannot use endpoint id %q: %w", id, errdefs.ErrInvalidArgument)
	}
	for _, c := range []byte(id) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '-' && c != '_' {
			return fmt.Errorf("cannot use endpoint id %q: %w", id, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// pick finds an IPv4 address for a new endpoint: want, or the next after last
// that nobody has. An address that was just given back so comes last.
func pick(subnet netip.Prefix, used map[netip.Addr]string, want string, last uint32) (netip.Addr, error) {
	if want != "" {
		a, err := netip.ParseAddr(want)
		if err != nil || !a.Is4() || !subnet.Contains(a) {
			return a, fmt.Errorf("cannot use address %q: want an IPv4 address in %s: %w", want, subnet, errdefs.ErrInvalidArgument)
		}
		if a == subnet.Addr() || a == gateway(subnet) || a == broadcast(subnet) {
			return a, fmt.Errorf("cannot use address %q: it belongs to the bridge: %w", want, errdefs.ErrInvalidArgument)
		}
		if who := used[a]; who != "" {
			return a, fmt.Errorf("cannot use address %q: container %.12s has it: %w", want, who, errdefs.ErrAlreadyExists)
		}
		return a, nil
	}
	top := uint32(1)<<(32-subnet.Bits()) - 2 // the last one before broadcast
	for i := uint32(0); i <= top-2; i++ {
		n := 2 + (last-1+i)%(top-1)
		if a := nth(subnet, n); used[a] == "" {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("cannot find a free address in %s: all %d are in use: %w", subnet, top-1, errdefs.ErrResourceExhausted)
}
