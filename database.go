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
	SQL        []string          `json:"sql,omitempty"`       // paths in the workspace, in the order of their execution
	Dump       string            `json:"dump,omitempty"`      // a file or a directory in the workspace
	Directory  string            `json:"directory,omitempty"` // PGDATA: a path in the workspace, or an absolute one of the server's machine
	Server     *LockedServer     `json:"server,omitempty"`    // that is copied
	AsOf       int64             `json:"as_of,omitempty"`     // when a copy of what is outside of the workspace was asked for, in seconds since 1970
	Mask       string            `json:"mask,omitempty"`      // executed last
	Files      map[string]string `json:"files,omitempty"`     // digests of all that is in the workspace; one of a whole data directory
	Extensions []string          `json:"extensions,omitempty"`
	Settings   map[string]string `json:"settings,omitempty"`
	Spare      bool              `json:"spare,omitempty"`  // keep one ready for the next rollback
	Redact     []string          `json:"redact,omitempty"` // columns whose values differences hide: patterns of [SCHEMA.]TABLE.COLUMN
}

// LockedServer is a live Postgres.
type LockedServer struct {
	Secret   string `json:"secret"`             // name of the connection, which only the server's machine knows
	Physical bool   `json:"physical,omitempty"` // copy the whole cluster with pg_basebackup
}
