// Package faults holds one test for each fault that was found in use, named
// after its row (TestFaultA1...). Each test states the version of Docker or
// the section of the specification that the right value comes from.
package faults
