package web

import (
	"net/http"
	"strings"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

type userList struct {
	Users  []*slipwayv1.User
	Change bool
	Self   string
}

func (v *visit) listUsers() error {
	got, err := v.orgs.ListUsers(v.r.Context(), &slipwayv1.ListUsersRequest{})
	if err != nil {
		return err
	}
	return v.show(http.StatusOK, "users", "Users", userList{got.Users, v.may("user:write"), v.who.User})
}

func (v *visit) createUser() error {
	name := strings.TrimSpace(v.r.PostFormValue("name"))
	got, err := v.orgs.CreateUser(v.r.Context(), &slipwayv1.CreateUserRequest{
		Name: name, Role: v.r.PostFormValue("role"), WithoutToken: v.r.PostFormValue("without") != "",
	})
	if err != nil {
		return err
	}
	if got.Token == "" {
		return v.redirect("/users", "The user is created and signs in with single sign-on.")
	}
	c := created{What: "login of " + name, Value: got.Token, Type: "user", Back: "/users", Expires: "never"}
	if got.Expires != nil {
		c.Expires = exact(got.Expires)
	}
	return v.keep(c)
}

func (v *visit) setRole() error {
	got, err := v.orgs.SetUserRole(v.r.Context(), &slipwayv1.SetUserRoleRequest{Name: v.r.PathValue("name"), Role: v.r.PostFormValue("role")})
	if err != nil {
		return err
	}
	return v.redirect("/users", got.User.Name+" is "+got.User.Role+" from now on.")
}

func (v *visit) askRemoveUser() error {
	name := v.r.PathValue("name")
	return v.confirm(confirmation{
		Heading: "Remove " + name + "?", Text: "All tokens made on behalf of this user end within a second. The name cannot be used again.",
		Action: path("users", name, "remove"), Button: "Remove user", Back: "/users",
	})
}

func (v *visit) removeUser() error {
	name := v.r.PathValue("name")
	got, err := v.orgs.RemoveUser(v.r.Context(), &slipwayv1.RemoveUserRequest{Name: name})
	if err != nil {
		return err
	}
	return v.redirect("/users", name+" is removed; "+plural(float64(len(got.Revoked)), "token")+" ended.")
}
