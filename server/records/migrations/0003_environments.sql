-- +goose Up
create table environments (
    org        text not null,
    name       text not null,
    created_by text not null,
    created    bigint not null,
    deleted    bigint not null default 0,
    primary key (org, name)
);

-- The last version that an app has in an environment. Whoever releases changes
-- its row first, and so waits for others who do.
create table release_versions (
    org     text not null,
    app     text not null,
    env     text not null,
    version bigint not null,
    primary key (org, app, env)
);

create table releases (
    id            text primary key,
    org           text not null,
    app           text not null,
    env           text not null,
    version       bigint not null,
    digest        text not null,
    tag           text not null default '',
    build_id      text not null default '',
    promoted_from text not null default '',
    created_by    text not null,
    created       bigint not null
);
create unique index releases_version on releases (org, app, env, version);
create index releases_env on releases (org, env, created);
create index releases_id on releases (org, id);

create table pulls (
    id         text primary key,
    org        text not null,
    env        text not null,
    app        text not null,
    digest     text not null,
    tag        text not null default '',
    token_id   text not null,
    token_name text not null,
    address    text not null default '',
    user_agent text not null default '',
    first_seen bigint not null,
    last_seen  bigint not null,
    requests   bigint not null
);
create index pulls_app on pulls (org, env, app, last_seen);
create index pulls_env on pulls (org, env, last_seen);

-- +goose Down
drop table pulls;
drop table releases;
drop table release_versions;
drop table environments;
