// Package long holds the tests that repeat or combine too much for every run:
// hundreds of builds, matrices of clients and versions. They carry the build
// tag "long" and run by `make test-long`.
package long
