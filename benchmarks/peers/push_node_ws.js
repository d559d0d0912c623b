// A broadcast loop of Node's ws: node push_node_ws.js PORT, with ws found through NODE_PATH.
'use strict';

const http = require('http');
const { WebSocketServer } = require('ws');

const server = http.createServer(publish);
const sockets = new WebSocketServer({ server, perMessageDeflate: false });

function broadcast(text) {
  for (const client of sockets.clients) client.send(text);
}

function wait(seconds) {
  return new Promise((resolve) =>
    seconds > 0 ? setTimeout(resolve, seconds * 1000) : setImmediate(resolve));
}

async function publish(request, response) {
  const given = new URL(request.url, 'http://localhost').searchParams;
  const count = Number(given.get('count') ?? 1);
  const interval = Number(given.get('interval') ?? 0);
  const text = 'x'.repeat(Number(given.get('size') ?? 300));
  const began = performance.now() / 1000;
  for (let number = 0; number < count; number++) {
    await wait(interval && began + number * interval - performance.now() / 1000);
    broadcast(text);
  }
  const body = JSON.stringify({ seconds: performance.now() / 1000 - began });
  response.writeHead(200, { 'Content-Length': body.length, Connection: 'close' });
  response.end(body);
}

server.listen({ host: '127.0.0.1', port: Number(process.argv[2]), backlog: 2048 });
