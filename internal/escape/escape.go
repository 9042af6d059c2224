// Package escape holds the suite that tries to get out of environments. Its
// probes (package probe) run inside, where every door must be shut, and
// outside as a control, where the same code must find the door open.
package escape
