"""Flask-Smorest: an API by blueprints, documented."""

from flask import Flask
from flask.views import MethodView
from flask_smorest import Api, Blueprint, abort

from tests.neighbours.parts import add_parts

app = Flask(__name__)
app.config.update(
    API_TITLE="Shop", API_VERSION="v1", OPENAPI_VERSION="3.0.3", OPENAPI_URL_PREFIX="/doc"
)
api = Api(app)
sockets, turbo, sse = add_parts(app)
blueprint = Blueprint("orders", "orders", url_prefix="/api/orders")


@blueprint.route("/<int:number>")
class Order(MethodView):
    @blueprint.response(200)
    def get(self, number):
        if number == 0:
            abort(404, message="there is no such order")
        return {"number": number}


api.register_blueprint(blueprint)


@sockets.route("/refused", accept=False)
def refused(ws):
    abort(403, message="not for you")
