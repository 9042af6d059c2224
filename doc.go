// Package mayfly is the vocabulary of mayfly: environments, runs, snapshots,
// events and the errors that users see. It holds types and small service
// interfaces and imports the standard library only; behaviour is under
// internal/. The control engine and the HTTP client implement the same
// interfaces, so a program written against them works in process and over the
// socket alike.
package mayfly
