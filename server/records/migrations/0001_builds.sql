-- +goose Up
create table builds (
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
);
create index builds_org_app on builds (org, app, id);
create index builds_digest on builds (org, app, digest);
create unique index builds_idempotency on builds (org, app, idempotency_key);

-- +goose Down
drop table builds;
