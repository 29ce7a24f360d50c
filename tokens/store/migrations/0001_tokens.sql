-- +goose Up

-- One row, which whoever ends tokens or makes them changes first: so they take
-- turns, and revocations are numbered in the order in which they commit.
create table token_state (
    one      smallint primary key check (one = 1),
    revision bigint not null
);
insert into token_state (one, revision) values (1, 0);

create table tokens (
    id         text primary key,
    hash       text not null unique,
    org        text not null,
    type       text not null,
    name       text not null,
    app        text not null,
    env        text not null,
    permission text not null,
    command    text not null,
    session    smallint not null,
    parent     text references tokens (id),
    username   text not null,
    created_by text not null,
    created    bigint not null,
    expires    bigint,
    revoked    bigint,
    revoked_by text not null default '',
    last_used  bigint,
    last_addr  text not null default ''
);
create index tokens_org on tokens (org, id);
create index tokens_user on tokens (org, username);
create index tokens_parent on tokens (parent);

-- Kept when the token is deleted: other daemons may not have read it yet.
create table revocations (
    revision bigint not null,
    token    text not null,
    primary key (revision, token)
);

create table orgs (
    name    text primary key,
    created bigint not null
);

create table apps (
    name       text primary key,
    org        text not null,
    created_by text not null,
    created    bigint not null
);
create index apps_org on apps (org, name);

create table users (
    org     text not null,
    name    text not null,
    role    text not null,
    created bigint not null,
    removed bigint,
    primary key (org, name)
);

create table trusts (
    id         text primary key,
    org        text not null,
    name       text not null,
    issuer     text not null,
    audience   text not null,
    claims     text not null,
    type       text not null,
    app        text not null,
    env        text not null,
    permission text not null,
    role       text not null,
    ttl        bigint not null,
    created_by text not null,
    created    bigint not null
);

create table redeemed (
    hash    text primary key,
    expires bigint not null
);
create index redeemed_expires on redeemed (expires);

create table decisions (
    id       text primary key,
    time     bigint not null,
    org      text not null,
    token    text not null,
    actor    text not null,
    action   text not null,
    resource text not null,
    addr     text not null,
    allowed  smallint not null,
    reason   text not null,
    count    bigint not null
);
create index decisions_time on decisions (time, id);

-- +goose Down
drop table decisions;
drop table redeemed;
drop table trusts;
drop table users;
drop table apps;
drop table orgs;
drop table revocations;
drop table tokens;
drop table token_state;
