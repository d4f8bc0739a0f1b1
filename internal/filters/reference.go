package filters

import (
	"path"
	"slices"

	"github.com/distribution/reference"
)

// MatchReference tells whether one of the patterns matches an image name in one
// of the forms that people write: familiar or full, with or without tag. A
// pattern that is none matches nothing.
func MatchReference(patterns []string, name string) bool {
	n, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return false
	}
	forms := []string{reference.FamiliarString(n), reference.FamiliarName(n), reference.TagNameOnly(n).String(), n.Name()}
	return slices.ContainsFunc(patterns, func(p string) bool {
		return slices.ContainsFunc(forms, func(form string) bool {
			ok, err := path.Match(p, form)
			return err == nil && ok
		})
	})
}
