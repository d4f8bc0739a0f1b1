package engine

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/mount"

	"proa/internal/isolation"
)

// checkIDs refuses a container in a user namespace whose configuration names, by
// number, an id that the namespace lacks. Names are looked up at the start.
func checkIDs(rec *record, ids isolation.IDMap) error {
	user, group, _ := strings.Cut(rec.Config.User, ":")
	if err := checkID("user", user, ids); err != nil {
		return err
	}
	for _, g := range append([]string{group}, rec.Host.GroupAdd...) {
		if err := checkID("group", g, ids); err != nil {
			return err
		}
	}
	for _, m := range rec.Mounts {
		if m.Type != mount.TypeTmpfs {
			continue
		}
		for _, o := range strings.Split(m.Options, ",") {
			key, value, _ := strings.Cut(o, "=")
			if what := map[string]string{"uid": "user", "gid": "group"}[key]; what != "" {
				if err := checkID(what, value, ids); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// checkID is checkIDs for one id; a name, or a number that is none, is not its
// matter.
func checkID(what, id string, ids isolation.IDMap) error {
	if n, err := strconv.ParseUint(id, 10, 32); err == nil && !ids.Has(uint32(n)) {
		return invalid("cannot create the container: %s", isolation.NoID(what, uint32(n), ids))
	}
	return nil
}

// strangers warns of files of an image that belong to ids which a user namespace
// lacks: no process in it can be their owner or change them. "" if there are none.
func (e *Engine) strangers(ctx context.Context, imageID string, ids isolation.IDMap) (string, error) {
	owners, err := e.cfg.Images.Owners(ctx, imageID)
	if err != nil {
		return "", err
	}
	for _, o := range owners {
		if !ids.Has(o.ID) {
			return fmt.Sprintf("%s of the image belongs to id %d, which lies outside the ids of the container's user namespace (%s): it shows there as 65534 and cannot be changed; use --userns host or --runtime vm, or start proad with a larger --userns-size", o.Path, o.ID, ids), nil
		}
	}
	return "", nil
}
