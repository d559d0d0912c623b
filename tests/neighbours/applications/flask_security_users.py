"""Flask-Security with its login."""

from flask import Flask
from flask_security import (
    Security,
    SQLAlchemyUserDatastore,
    auth_required,
    current_user,
    hash_password,
)
from flask_security.models import fsqla_v3 as fsqla
from flask_sqlalchemy import SQLAlchemy

from tests.neighbours.parts import add_parts

app = Flask(__name__)
app.config.update(
    SECRET_KEY="for the tests",
    SECURITY_PASSWORD_SALT="salt of the tests",
    SECURITY_PASSWORD_HASH="plaintext",
    SECURITY_PASSWORD_SCHEMES=["plaintext"],
    SECURITY_PASSWORD_SINGLE_HASH=["plaintext"],
    SECURITY_EMAIL_VALIDATOR_ARGS={"check_deliverability": False},
    SQLALCHEMY_DATABASE_URI="sqlite://",
    WTF_CSRF_ENABLED=False,
)
db = SQLAlchemy(app)
fsqla.FsModels.set_db_info(db)


class Role(db.Model, fsqla.FsRoleMixin):
    pass


class User(db.Model, fsqla.FsUserMixin):
    pass


security = Security(app, SQLAlchemyUserDatastore(db, User, Role))
sockets, turbo, sse = add_parts(app)

with app.app_context():
    db.create_all()
    security.datastore.create_user(email="ann@example.com", password=hash_password("right-one"))
    db.session.commit()


@sockets.route("/private", accept=False)
@auth_required("session")
def private(ws):
    ws.send(f"hello, {current_user.email}")
