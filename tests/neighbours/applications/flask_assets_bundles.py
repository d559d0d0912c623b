"""Flask-Assets: the page's own script, with this package's beside it."""

import os

from flask import Flask
from flask_assets import Bundle, Environment

from tests.neighbours.parts import PAGE, add_parts

app = Flask(__name__, static_folder=os.environ["FILES"], static_url_path="/static")
assets = Environment(app)
assets.register("all", Bundle("one.js", "two.js", output="packed.js"))
BUNDLE = '{% assets "all" %}<script src="{{ ASSET_URL }}"></script>{% endassets %}'
add_parts(app, PAGE.replace("</head>", BUNDLE + "</head>"))
