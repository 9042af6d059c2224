CREATE TABLE busy (person text, span text, PRIMARY KEY (person, span));

INSERT INTO busy VALUES
	('Ada', '09:00-10:30'),
	('Ada', '13:00-16:30'),
	('Alan', '10:30-11:00');
