-- Statements that make $1 the owner of every object that is not its own, nor
-- an extension's, nor the system's. What only a superuser may own is given to
-- $2.
WITH ids AS (
	SELECT (SELECT oid FROM pg_roles WHERE rolname = $1) AS owner, (SELECT oid FROM pg_roles WHERE rolname = $2) AS admin
), object (class, id, owner, kind) AS (
	SELECT 'pg_namespace'::regclass, oid, nspowner, 'SCHEMA' FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
	UNION ALL
	SELECT 'pg_class'::regclass, oid, relowner,
		CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE' WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END
	FROM pg_class c WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND relpersistence <> 't' AND NOT EXISTS (
		SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid AND c.relkind = 'S'
			AND refclassid = 'pg_class'::regclass AND refobjsubid > 0 AND deptype IN ('a', 'i'))
	UNION ALL
	SELECT 'pg_type'::regclass, t.oid, typowner, 'TYPE' FROM pg_type t LEFT JOIN pg_class c ON c.oid = typrelid
	WHERE (typtype IN ('d', 'e', 'r', 'b') OR c.relkind = 'c') AND t.oid NOT IN (SELECT typarray FROM pg_type)
	UNION ALL SELECT 'pg_proc'::regclass, oid, proowner, 'ROUTINE' FROM pg_proc
	UNION ALL SELECT 'pg_operator'::regclass, oid, oprowner, 'OPERATOR' FROM pg_operator
	UNION ALL SELECT 'pg_opfamily'::regclass, oid, opfowner, 'OPERATOR FAMILY' FROM pg_opfamily
	UNION ALL SELECT 'pg_opclass'::regclass, oid, opcowner, 'OPERATOR CLASS' FROM pg_opclass
	UNION ALL SELECT 'pg_collation'::regclass, oid, collowner, 'COLLATION' FROM pg_collation
	UNION ALL SELECT 'pg_conversion'::regclass, oid, conowner, 'CONVERSION' FROM pg_conversion
	UNION ALL SELECT 'pg_ts_dict'::regclass, oid, dictowner, 'TEXT SEARCH DICTIONARY' FROM pg_ts_dict
	UNION ALL SELECT 'pg_ts_config'::regclass, oid, cfgowner, 'TEXT SEARCH CONFIGURATION' FROM pg_ts_config
	UNION ALL SELECT 'pg_statistic_ext'::regclass, oid, stxowner, 'STATISTICS' FROM pg_statistic_ext
	UNION ALL SELECT 'pg_largeobject'::regclass, oid, lomowner, 'LARGE OBJECT' FROM pg_largeobject_metadata
	UNION ALL SELECT 'pg_publication'::regclass, oid, pubowner, 'PUBLICATION' FROM pg_publication
	UNION ALL SELECT 'pg_foreign_data_wrapper'::regclass, oid, fdwowner, 'FOREIGN DATA WRAPPER' FROM pg_foreign_data_wrapper
	UNION ALL SELECT 'pg_foreign_server'::regclass, oid, srvowner, 'SERVER' FROM pg_foreign_server
	UNION ALL SELECT 'pg_event_trigger'::regclass, oid, evtowner, 'EVENT TRIGGER' FROM pg_event_trigger
	UNION ALL SELECT 'pg_language'::regclass, oid, lanowner, 'LANGUAGE' FROM pg_language
), wanted AS (
	SELECT object.*, CASE WHEN kind IN ('PUBLICATION', 'FOREIGN DATA WRAPPER', 'SERVER', 'EVENT TRIGGER', 'LANGUAGE') THEN ids.admin ELSE ids.owner END AS new
	FROM object, ids
	WHERE (id >= 16384 OR class IN ('pg_namespace'::regclass, 'pg_largeobject'::regclass)) AND NOT EXISTS (
		SELECT FROM pg_depend WHERE classid = class AND objid = id AND deptype = 'e')
)
SELECT format('ALTER %s %s OWNER TO %I', kind, (pg_identify_object(class, id, 0)).identity, pg_get_userbyid(new))
FROM wanted WHERE owner <> new
ORDER BY kind <> 'SCHEMA', class, id
