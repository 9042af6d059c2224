package mayfly

import "time"

// LockedService is a program that runs beside the commands of every
// environment, under a user of its own, and keeps its data in the volume.
type LockedService struct {
	Name     string            `json:"name"`
	Command  []string          `json:"command,omitempty"` // {data} and {port} stand for its directory and its port, also in Init, Ready and Env
	Init     []string          `json:"init,omitempty"`    // fills its directory, once, before its first start
	Port     int               `json:"port,omitempty"`    // on the loopback device
	Ready    []string          `json:"ready,omitempty"`   // ends with 0 when the service is ready; empty: the port accepts connections
	Env      map[string]string `json:"env,omitempty"`
	Timeout  time.Duration     `json:"timeout"`            // nanoseconds that it may take to become ready
	Postgres *LockedPostgres   `json:"postgres,omitempty"` // instead of Command, Init, Ready and Env
}

// LockedPostgres says what a database begins with.
type LockedPostgres struct {
	Version    string            `json:"version"` // major
	Database   string            `json:"database"`
	SQL        []string          `json:"sql,omitempty"`   // paths in the workspace, in the order of their execution
	Dump       string            `json:"dump,omitempty"`  // a file or a directory in the workspace
	Mask       string            `json:"mask,omitempty"`  // executed last
	Files      map[string]string `json:"files,omitempty"` // digests of all of these
	Extensions []string          `json:"extensions,omitempty"`
	Settings   map[string]string `json:"settings,omitempty"`
}
