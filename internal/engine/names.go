package engine

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"math/big"
	"regexp"
)

// validName is Docker's rule for the names of containers.
var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

func checkName(name string) error {
	if !validName.MatchString(name) {
		return invalid("Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name)
	}
	return nil
}

// newID makes 256 random bits. Ids whose first twelve digits are all decimal
// are thrown away: they serve as host names, and some programs take a number
// for an address.
func newID() string {
	for {
		var b [32]byte
		rand.Read(b[:]) // never fails since Go 1.24
		id := hex.EncodeToString(b[:])
		for _, c := range id[:12] {
			if c > '9' {
				return id
			}
		}
	}
}

// generateName makes a name out of two words; after enough bad luck a number
// makes it unique.
func generateName(taken func(string) bool) string {
	for try := 0; ; try++ {
		name := pick(adjectives) + "_" + pick(surnames)
		if try > 5 {
			name = fmt.Sprintf("%s%d", name, random(1000*int64(try)))
		}
		if !taken(name) {
			return name
		}
	}
}

func pick(words []string) string { return words[random(int64(len(words)))] }

func random(n int64) int64 {
	v, err := rand.Int(rand.Reader, big.NewInt(n))
	if err != nil {
		panic(err) // cannot happen: crypto/rand does not fail
	}
	return v.Int64()
}

// The words are our own: things one may say of a house, and people who
// measured the world.
var adjectives = []string{
	"airy", "ample", "amber", "arched", "autumnal", "azure", "balmy", "braced", "breezy", "bricked", "broad", "calm",
	"carved", "cedar", "chalky", "coastal", "cobbled", "copper", "cosy", "crisp", "dewy", "dry", "early", "earthen",
	"fern", "firm", "fluted", "gabled", "glazed", "golden", "granite", "grassy", "handy", "hazel", "hearty", "hilly",
	"honest", "inner", "ivory", "ivy", "level", "limed", "linen", "lofty", "lunar", "maple", "mellow", "misty",
	"mossy", "neat", "northern", "oaken", "open", "outer", "paved", "pearly", "pine", "plain", "plumb", "polar",
	"quiet", "rainy", "roomy", "rosy", "rustic", "sandy", "scenic", "shady", "sheltered", "silver", "slate", "snowy",
	"solid", "southern", "spare", "square", "stable", "starlit", "steady", "stone", "sunny", "tidal", "tiled", "timber",
	"tranquil", "upper", "vaulted", "velvet", "warm", "western", "whole", "windy", "woven",
}

var surnames = []string{
	"almagro", "arrowsmith", "behaim", "bellin", "bering", "blaeu", "bouguer", "bowditch", "cabot", "cassini", "champlain", "clairaut",
	"condamine", "coronelli", "dalrymple", "danville", "delambre", "delisle", "dufour", "everest", "fernel", "flamsteed", "flinders", "frisius",
	"gastaldi", "germanus", "gillray", "godin", "gunter", "hakluyt", "hevelius", "hipparchus", "hondius", "idrisi", "imhof", "jansson",
	"jefferys", "kircher", "lambton", "lacaille", "lehmann", "linschoten", "malaspina", "marinus", "maupertuis", "mercator", "molyneux", "moll",
	"muenster", "norden", "ogilby", "ortelius", "oughtred", "palander", "picard", "plancius", "posidonius", "prunes", "quadus", "ravenstein",
	"rennell", "ricci", "rosaccio", "roy", "sanson", "saxton", "schoner", "snell", "speed", "spilbergen", "strabo", "struve",
	"tallis", "tasman", "tranchot", "vallard", "vancouver", "visscher", "waghenaer", "waldo", "wallis", "weimar", "wytfliet", "zatta",
}
