"""Flask-Admin with a model."""

from flask import Flask
from flask_admin import Admin
from flask_admin.contrib.sqla import ModelView
from flask_babel import Babel
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column

from tests.neighbours.parts import add_parts

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
db = SQLAlchemy(app)
Babel(app)  # Flask-Admin asks for it where Flask-Babel is installed


class Order(db.Model):
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


sockets, turbo, sse = add_parts(app)


class Orders(ModelView):
    def after_model_change(self, form, model, is_created):
        sockets.publish("orders", model.text)


admin = Admin(app, name="shop")
admin.add_view(Orders(Order, db))

with app.app_context():
    db.create_all()


@sockets.route("/orders")
def orders(ws):
    ws.subscribe("orders", "")
