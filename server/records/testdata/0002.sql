-- A database that slipwayd made when it had two migrations.
BEGIN TRANSACTION;
CREATE TABLE builds (
    id              text primary key,
    org             text not null,
    app             text not null,
    status          text not null,
    pipeline        text not null,
    created_by      text not null,
    created         bigint not null,
    started         bigint not null default 0,
    ended           bigint not null default 0,
    digest          text not null default '',
    tag             text not null default '',
    result          bytea,
    idempotency_key text
, plan smallint not null default 0);
INSERT INTO "builds" VALUES('01HF7YAT00A','default','shop','succeeded','PIPELINE_CLASSIC','admin',1700000000123,1700000001123,1700000060123,'sha256:1','v1',X'0001FF','k1',0);
INSERT INTO "builds" VALUES('01HF7YAT00B','default','shop','running','PIPELINE_CLASSIC','admin',1700000000123,1700000001123,0,'','',NULL,NULL,0);
INSERT INTO "builds" VALUES('01HF7YAT00C','default','shop','queued','PIPELINE_CLASSIC','admin',1700000000123,0,0,'','',NULL,NULL,1);
CREATE TABLE goose_db_version (
		id INTEGER PRIMARY KEY AUTOINCREMENT,
		version_id INTEGER NOT NULL,
		is_applied INTEGER NOT NULL,
		tstamp TIMESTAMP DEFAULT (datetime('now'))
	);
INSERT INTO "goose_db_version" VALUES(1,0,1,'2026-11-22 17:23:29');
INSERT INTO "goose_db_version" VALUES(2,1,1,'2026-11-22 17:23:29');
INSERT INTO "goose_db_version" VALUES(3,2,1,'2026-11-22 17:23:29');
CREATE INDEX builds_org_app on builds (org, app, id);
CREATE INDEX builds_digest on builds (org, app, digest);
CREATE UNIQUE INDEX builds_idempotency on builds (org, app, idempotency_key);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('goose_db_version',3);
COMMIT;
