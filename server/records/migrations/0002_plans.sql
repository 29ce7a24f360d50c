-- +goose Up
alter table builds add column plan smallint not null default 0;

-- +goose Down
alter table builds drop column plan;
