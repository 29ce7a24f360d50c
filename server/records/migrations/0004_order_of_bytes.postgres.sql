-- +goose Up

-- What is listed in order is in the order of its bytes, whatever the database's.
alter table builds alter id type text collate "C", alter app type text collate "C";
alter table environments alter name type text collate "C";
alter table release_versions alter app type text collate "C", alter env type text collate "C";
alter table releases alter id type text collate "C", alter app type text collate "C", alter env type text collate "C";
alter table pulls alter id type text collate "C", alter app type text collate "C", alter env type text collate "C";

-- +goose Down
alter table pulls alter id type text collate "default", alter app type text collate "default", alter env type text collate "default";
alter table releases alter id type text collate "default", alter app type text collate "default", alter env type text collate "default";
alter table release_versions alter app type text collate "default", alter env type text collate "default";
alter table environments alter name type text collate "default";
alter table builds alter id type text collate "default", alter app type text collate "default";
