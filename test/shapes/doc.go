// Package shapes compares keys and types of the API's answers, route by route
// and version by version: up to 1.41 with a dockerd of 20.10.24 beside it that
// holds the same objects, above with what Docker has published (testdata, written by record).
// What differs on purpose stands in a table with its reason; anything else fails.
package shapes
