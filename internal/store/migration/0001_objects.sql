-- One row per environment, run, snapshot and template; doc is its JSON form.
CREATE TABLE objects (
    kind   TEXT NOT NULL,
    id     TEXT NOT NULL,
    parent TEXT NOT NULL DEFAULT '', -- id of the environment that it belongs to
    name   TEXT NOT NULL DEFAULT '', -- unique among open objects of a kind
    open   INTEGER NOT NULL,         -- 1 while the engine has to look after it
    doc    TEXT NOT NULL,
    PRIMARY KEY (kind, id)
) WITHOUT ROWID;

CREATE INDEX objects_by_parent ON objects (kind, parent, id);
CREATE INDEX objects_open ON objects (kind, parent, id) WHERE open = 1;
CREATE UNIQUE INDEX objects_by_name ON objects (kind, name) WHERE open = 1 AND name <> '';

-- Events that are decided and not yet in the ledger. number never repeats.
CREATE TABLE outbox (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    event  TEXT NOT NULL
);
