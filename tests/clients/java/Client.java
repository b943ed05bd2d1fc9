// What java.net.http.HttpClient does as it comes, which offers HTTP/2 on every request: URL, then a GGUF file, as arguments.
// One line of `verb<TAB>JSON` for each answer; a refusal's JSON is wrapped with its status.
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.HexFormat;
import java.util.stream.Stream;

public class Client {
    static final HttpClient client = HttpClient.newHttpClient();
    static String base;

    static <T> HttpResponse<T> send(String method, String path, BodyPublisher body, HttpResponse.BodyHandler<T> handler) throws Exception {
        HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(base + path)).header("Content-Type", "application/json");
        return client.send(request.method(method, body).build(), handler);
    }

    static void call(String verb, String method, String path, String body, int status) throws Exception {
        BodyPublisher publisher = body == null ? BodyPublishers.noBody() : BodyPublishers.ofString(body);
        HttpResponse<Stream<String>> answer = send(method, path, publisher, BodyHandlers.ofLines());
        if (answer.statusCode() != status) {
            throw new IllegalStateException(verb + ": " + answer.statusCode() + " " + answer.body().toList());
        }
        if (status == 200) {
            answer.body().forEach(line -> System.out.println(verb + "\t" + line));
        } else {
            String text = answer.body().reduce("", String::concat);
            System.out.println(verb + "\t{\"status\":" + status + ",\"body\":" + text + "}");
        }
    }

    public static void main(String[] arguments) throws Exception {
        base = arguments[0];
        String few = "\"options\":{\"num_predict\":8,\"temperature\":0}";
        String chat = "{\"model\":\"smollm2\",\"messages\":[{\"role\":\"user\",\"content\":\"What is the capital of France?\"}]," + few;
        String generate = "{\"model\":\"smollm2\",\"prompt\":\"The sea is\"," + few;
        call("version", "GET", "/api/version", null, 200);
        call("list", "GET", "/api/tags", null, 200);
        call("chat", "POST", "/api/chat", chat + ",\"stream\":false}", 200);
        call("chat-stream", "POST", "/api/chat", chat + "}", 200);
        call("generate", "POST", "/api/generate", generate + ",\"stream\":false}", 200);
        call("generate-stream", "POST", "/api/generate", generate + "}", 200);
        call("system", "POST", "/api/generate", "{\"model\":\"pirate\",\"prompt\":\"Hi\",\"stream\":false,\"system\":\"\"}", 200);
        call("embed", "POST", "/api/embed", "{\"model\":\"all-minilm\",\"input\":[\"one\",\"two\"]}", 200);
        call("embeddings", "POST", "/api/embeddings", "{\"model\":\"all-minilm\",\"prompt\":\"one\"}", 200);
        call("ps", "GET", "/api/ps", null, 200);
        Path file = Path.of(arguments[1]);
        String digest = "sha256:" + HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(Files.readAllBytes(file)));
        HttpResponse<String> sent = send("POST", "/api/blobs/" + digest, BodyPublishers.ofFile(file), BodyHandlers.ofString());
        if (sent.statusCode() != 201) {
            throw new IllegalStateException("blob: " + sent.statusCode() + " " + sent.body());
        }
        call("create", "POST", "/api/create", "{\"model\":\"made\",\"system\":\"Be brief.\",\"files\":{\"m.gguf\":\"" + digest + "\"}}", 200);
        call("show", "POST", "/api/show", "{\"model\":\"made\"}", 200);
        call("copy", "POST", "/api/copy", "{\"source\":\"made\",\"destination\":\"copied\"}", 200);
        call("delete", "DELETE", "/api/delete", "{\"model\":\"made\"}", 200);
        call("delete", "DELETE", "/api/delete", "{\"model\":\"copied\"}", 200);
        call("gone", "POST", "/api/show", "{\"model\":\"made\"}", 404);
        call("wrong", "POST", "/api/generate", "{\"model\":\"smollm2\",\"prompt\":\"x\",\"options\":{\"num_ctx\":\"many\"}}", 400);
    }
}
