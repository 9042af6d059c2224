package rowdiff

import "testing"

// The owner of the tables is no superuser, and cannot switch off what acts
// when rows change as one does.
func TestScriptsApplyForTheOwner(t *testing.T) {
	in := sharedInstance(t)
	const owner = "SET SESSION AUTHORIZATION plain;"
	admin := in.connect(t, "postgres")
	execSQL(t, admin, "CREATE ROLE plain; GRANT pg_read_all_settings TO plain")
	t.Cleanup(func() { try(admin, "DROP ROLE plain") })
	from, to := in.pair(t, "GRANT ALL ON SCHEMA public TO plain;"+owner+`
		CREATE TABLE log (x text);
		CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO public.log VALUES (TG_OP); NEW.n := 0; RETURN NEW; END';
		CREATE TABLE a_parent (id int PRIMARY KEY, n int);
		CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES a_parent ON DELETE CASCADE ON UPDATE CASCADE, next int CONSTRAINT chain REFERENCES child DEFERRABLE);
		COMMENT ON CONSTRAINT chain ON child IS 'it''s one';
		CREATE TABLE strict (id int REFERENCES a_parent ON DELETE RESTRICT);
		CREATE TABLE part (k int PRIMARY KEY, parent int REFERENCES a_parent) PARTITION BY LIST (k);
		CREATE TABLE part1 PARTITION OF part FOR VALUES IN (1); CREATE TABLE part2 PARTITION OF part FOR VALUES IN (2);
		CREATE TABLE leaf (k int REFERENCES part);
		INSERT INTO a_parent SELECT g, g FROM generate_series(1, 9) g;
		INSERT INTO child VALUES (1, 1, NULL), (2, 2, 1), (3, 3, 2);
		INSERT INTO strict VALUES (4); INSERT INTO part VALUES (1, 5), (2, 6); INSERT INTO leaf VALUES (1);
		CREATE TRIGGER noted BEFORE INSERT OR UPDATE ON a_parent FOR EACH ROW EXECUTE FUNCTION note();
		CREATE TRIGGER always AFTER DELETE ON a_parent FOR EACH ROW EXECUTE FUNCTION note();
		ALTER TABLE a_parent ENABLE ALWAYS TRIGGER always;
		CREATE RULE twice AS ON DELETE TO strict DO ALSO INSERT INTO log VALUES ('rule')`,
		owner+`DELETE FROM a_parent WHERE id = 3; UPDATE a_parent SET id = 20 WHERE id = 2;
		DELETE FROM strict; DELETE FROM a_parent WHERE id = 4; INSERT INTO a_parent VALUES (40, 1); INSERT INTO strict VALUES (40);
		INSERT INTO child VALUES (9, 40, 1); DELETE FROM leaf; DELETE FROM part WHERE k = 1; INSERT INTO leaf VALUES (2);
		UPDATE part SET parent = 40; ALTER TABLE child ADD more text DEFAULT 'x'; CREATE TABLE new (id int PRIMARY KEY, c int REFERENCES child); INSERT INTO new VALUES (1, 9)`)
	d := in.compareDBs(t, from, to, in.dirs())
	fw, back := owner+forward(t, d), owner+reverse(t, d)
	hangUp(d)
	was, is := in.state(t, from), in.state(t, to)
	in.applies(t, from, to, is, fw)
	in.applies(t, to, from, was, back)
}
