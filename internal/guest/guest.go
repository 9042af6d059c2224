// Package guest is the protocol between the server and the first process of
// an environment, and its client. The program itself is cmd/mayfly-guest.
//
// The guest owns the commands of its environment: it starts them, reaps
// orphans, writes their output to log files and their ends to exit records in
// the environment's host directory, so that nothing of a run depends on a
// server being there.
package guest
