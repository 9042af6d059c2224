-- Statements that end the database's subscriptions without a word to those
-- who publish.
SELECT format(s, subname) FROM pg_subscription, unnest(ARRAY['ALTER SUBSCRIPTION %I DISABLE',
	'ALTER SUBSCRIPTION %I SET (slot_name = NONE)', 'DROP SUBSCRIPTION %I']) WITH ORDINALITY AS a (s, n)
WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
ORDER BY subname, n
